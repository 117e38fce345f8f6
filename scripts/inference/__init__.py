# SPDX-License-Identifier: Apache-2.0
"""Segment images with a trained network; `Segmenter.from_bundle` is the way in from Python (docs/python.md)."""

from scripts.inference.segmenter import Segmenter

__all__ = ["Segmenter"]
