"""Volumes to overlapping tokens, and tokens back to volumes."""

import torch
from torch import Tensor


def reflected_windows(size: int, patch_size: int, stride: int, padding: int, device: torch.device) -> Tensor:
    """Voxel index of every window position along one axis, reflection resolved.

    Returns: shape (G, p), values in [0, size); index -1 reads voxel 1 (the border voxel is not repeated).
    Raises: ValueError: if the padding is not smaller than the axis, or the window larger than the padded axis.
    """
    if padding >= size:
        raise ValueError(
            f"padding {padding} must be smaller than the volume edge {size} (reflection); enlarge the volume."
        )
    if patch_size > size + 2 * padding:
        raise ValueError(f"patch_size {patch_size} exceeds the padded volume edge {size + 2 * padding}.")
    grid = (size + 2 * padding - patch_size) // stride + 1
    starts = torch.arange(grid, device=device)[:, None] * stride - padding
    index = (starts + torch.arange(patch_size, device=device)[None, :]).abs()
    return (size - 1) - (size - 1 - index).abs()


def extract_patches(volume: Tensor, patch_size: int, stride: int, padding: int) -> Tensor:
    """Cut a volume into overlapping patches, one token each.

    Padding, windowing and flattening are one gather; only the tokens themselves are allocated.

    Args:
        volume: shape (B, C, D, H, W), any dtype.
        patch_size: patch edge p in voxels.
        stride: distance s between patches in voxels.
        padding: reflect padding k in voxels on all six faces.
    Returns: shape (B, N, C·p³); tokens in C order of (d, h, w), within a token channel slowest, then d, h, w.
    Source: SPEC §1.1.
    """
    if volume.dim() != 5:
        raise ValueError(f"volume has shape {tuple(volume.shape)}; expected (B, C, D, H, W).")
    batch, channels = volume.shape[:2]
    d, h, w = (reflected_windows(size, patch_size, stride, padding, volume.device) for size in volume.shape[2:])
    windows = volume[
        :,
        :,
        d[:, None, None, :, None, None],
        h[None, :, None, None, :, None],
        w[None, None, :, None, None, :],
    ]  # (B, C, G, G, G, p, p, p)
    num_tokens = d.shape[0] * h.shape[0] * w.shape[0]
    return windows.reshape(batch, channels, num_tokens, -1).transpose(1, 2).reshape(batch, num_tokens, -1)


def unpatchify(tokens: Tensor, out_channels: int, stride: int, volume_size: int) -> Tensor:
    """Tile token vectors into a volume; outputs do not overlap, nothing is averaged.

    Args:
        tokens: shape (B, N, s³·O), laid out (d, h, w, channel) with the channel fastest.
        out_channels: O.
        stride: output patch edge s in voxels.
        volume_size: volume edge S in voxels.
    Returns: shape (B, O, S, S, S).
    Raises: ValueError: if the tokens do not fill the volume.
    Source: SPEC §1.2.
    """
    grid = volume_size // stride
    expected = (grid**3, stride**3 * out_channels)
    if tokens.dim() != 3 or tuple(tokens.shape[1:]) != expected:
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)}; a {volume_size}³ volume of {out_channels} channels in {stride}³ "
            f"blocks needs (B, {expected[0]}, {expected[1]})."
        )
    blocks = tokens.reshape(-1, grid, grid, grid, stride, stride, stride, out_channels)
    return blocks.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(-1, out_channels, volume_size, volume_size, volume_size)
