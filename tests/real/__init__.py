"""Tests with the real model. A package, so that its platform ends with its last test."""
