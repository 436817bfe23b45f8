"""Samplers with one call, ``sampler(denoise, x, times, keys)``, and image generation deterministic in (seed, index)."""
