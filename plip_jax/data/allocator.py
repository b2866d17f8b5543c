"""Memory for pixels, kept between images.

A decoded image is megabytes that live for milliseconds. glibc gives such blocks back to the kernel when they are freed
and asks for them again with the next image, so each of their pages is mapped and cleared once an image: about 600 page
faults for a 640 x 480 JPEG, a fifth of the CPU time of decoding it. Raising two thresholds keeps the blocks.
"""

import ctypes
import functools
import os

# The parameters' numbers and the environment variables that set them: mallopt(3), glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")

# An image of 4,096 x 4,096 pixels in Pillow's 4 bytes; larger ones are mapped and given back as ever.
MMAP_THRESHOLD_BYTES = 64 * 2**20
# Free memory at the end of the heap that the process keeps at most.
TRIM_THRESHOLD_BYTES = 256 * 2**20


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks of up to 64 MiB for the next image; affects the whole process.

    For processes that decode images all the time, so the data pipeline and `batching` call it and the library's import
    does not. Does nothing on other C libraries, or where the environment sets the thresholds already.

    Returns:
        Whether it was done.
    """
    if any(name in os.environ for name in _ENVIRONMENT):
        return False
    try:
        is_glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # not on Windows; another libc does not know the name
        return False
    if not is_glibc:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    keeps_blocks = mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES) == 1
    return mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES) == 1 and keeps_blocks
