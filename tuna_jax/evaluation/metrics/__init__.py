"""Metrics on arrays: accuracy with intervals, PSNR and SSIM, FID and CMMD, CKNNA."""
