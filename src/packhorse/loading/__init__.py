"""From settings to loaded stages: what backends share, one backend on its device, and which of them a job takes."""

from packhorse.loading.loader import Loader

__all__ = ["Loader"]
