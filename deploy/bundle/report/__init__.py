"""The report of a bundle: its content once, as a page, as Markdown and in the terminal."""
