"""What the GPU itself says: NVML readings, sampled beside the requests."""
