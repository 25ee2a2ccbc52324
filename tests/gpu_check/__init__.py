"""What a machine with one NVIDIA GPU makes of prdit: agreement with the CPU, memory against the plan, time. `make gpu-check`.

Nothing is imported but the standard library, torch, numpy, scipy, safetensors (xformers and Triton where the product or torch find
them) and this repository. Each part runs in a process of its own, so that no exception, dead CUDA context or hang of one takes
another's results away.
"""
