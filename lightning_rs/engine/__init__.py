"""The hot loop, the only one: streams, sampler, runtime, workers, calibration, the inference compiler."""
