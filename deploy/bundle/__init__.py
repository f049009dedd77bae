"""The folder a build leaves: baseline and verification that go into it, writing it, reading it."""
