"""Static INT8: ranges found once, turned by a runtime's rules into one plan, chosen by accuracy and speed."""
