"""Core ML: packages for iPhone, iPad and Mac, written and evaluated on any machine."""

from backends.coreml.backend import CoreML

__all__ = ["CoreML"]
