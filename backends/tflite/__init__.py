"""TFLite: the format of LiteRT, for Android phones and small boards. The file is written directly."""

from backends.tflite.backend import TFLite

__all__ = ["TFLite"]
