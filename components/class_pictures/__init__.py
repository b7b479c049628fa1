"""Pictures of a subject's class, as the base weights draw them."""

from components.class_pictures.component import ClassPictures

__all__ = ["ClassPictures"]
