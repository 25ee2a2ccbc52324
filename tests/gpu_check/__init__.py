"""prdit on a machine with one NVIDIA GPU: agreement with the CPU, memory against the plan, time. `make gpu-check`.

Nothing is imported but the standard library, torch, numpy, scipy, safetensors (xformers and Triton where the product or torch find
them) and this repository. Each part runs in a process of its own, so that an exception, a lost CUDA context or a hang of one does
not lose another's results.
"""
