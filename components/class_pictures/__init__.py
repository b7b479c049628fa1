"""Pictures of a subject's class, drawn by the base weights."""

from components.class_pictures.component import ClassPictures

__all__ = ["ClassPictures"]
