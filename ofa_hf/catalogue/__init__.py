"""The catalogue of published checkpoints: language, size, task, prompt, published scores."""
