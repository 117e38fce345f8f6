# SPDX-License-Identifier: Apache-2.0
"""Segment images with a trained network; in Python, start with `Segmenter.from_bundle` (docs/python.md)."""

from scripts.inference.segmenter import Segmenter

__all__ = ["Segmenter"]
