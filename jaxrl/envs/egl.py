"""OpenGL without a display, for EnvPool's pictures. EnvPool ends the process where this is missing.

EnvPool brings a libEGL of its own and links it, but MuJoCo inside asks the whole process for its functions,
and finds the first that was loaded globally. Which must be the one that EnvPool is linked to: its own, or the
system's where that was loaded globally before EnvPool was imported.
"""

import contextlib
import ctypes
import functools
import pathlib

import envpool

from jaxrl.config import ConfigError

REMEDY = "apt-get install libegl1 libgl1-mesa-dri (NVIDIA's driver has its own), or use --env.observe=state"
DEVICE_PLATFORM = 0x313F  # EGL_PLATFORM_DEVICE_EXT
MOST_DEVICES = 64


def claim() -> None:
    """Loads EnvPool's libEGL globally; to be called as soon as EnvPool is imported.

    Later may be too late: MuJoCo's own renderer loads the system's libEGL globally.
    """
    with contextlib.suppress(OSError):  # `load_egl` will say it, if it is wanted at all
        ctypes.CDLL(_path(), ctypes.RTLD_GLOBAL)


@functools.cache
def load_egl() -> None:
    """Looks whether a driver answers to the EGL that EnvPool would use.

    Raises:
      ConfigError: no libEGL, or no driver behind it.
    """
    try:
        library = ctypes.CDLL(_path(), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ConfigError(f"env.observe=pixels: no OpenGL ({error}); {REMEDY}") from error
    if not _answers(library):
        raise ConfigError(f"env.observe=pixels: no OpenGL, since EGL finds no driver; {REMEDY}")


def _path() -> str:
    """EnvPool's own libEGL, or else the system's."""
    folder = pathlib.Path(envpool.__file__).parents[1] / "envpool.libs"
    return next((str(path) for path in sorted(folder.glob("libEGL-*"))), "libEGL.so.1")


def _answers(library: ctypes.CDLL) -> bool:
    """Whether the default display or one of the devices starts: EnvPool takes a device first."""
    pointer = ctypes.c_void_p
    initialize = ctypes.CFUNCTYPE(ctypes.c_uint, pointer, pointer, pointer)(("eglInitialize", library))
    default = ctypes.CFUNCTYPE(pointer, pointer)(("eglGetDisplay", library))
    address = ctypes.CFUNCTYPE(pointer, ctypes.c_char_p)(("eglGetProcAddress", library))
    displays = [default(None)]
    query, display = address(b"eglQueryDevicesEXT"), address(b"eglGetPlatformDisplayEXT")
    if query and display:
        found, count = (pointer * MOST_DEVICES)(), ctypes.c_int()
        kind = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, pointer, ctypes.POINTER(ctypes.c_int))
        kind(query)(MOST_DEVICES, ctypes.cast(found, pointer), ctypes.byref(count))
        of_device = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(display)
        displays += [of_device(DEVICE_PLATFORM, device, None) for device in found[: count.value]]
    return any(shown and initialize(shown, None, None) for shown in displays)
