"""Names of the Atari tasks, found without importing envpool."""

import functools
import importlib.util
import pathlib

# Kaiser et al. 2020, "Model-based reinforcement learning for Atari", as task names of this package.
ATARI100K: tuple[str, ...] = (
    "atari_alien",
    "atari_amidar",
    "atari_assault",
    "atari_asterix",
    "atari_bank_heist",
    "atari_battle_zone",
    "atari_boxing",
    "atari_breakout",
    "atari_chopper_command",
    "atari_crazy_climber",
    "atari_demon_attack",
    "atari_freeway",
    "atari_frostbite",
    "atari_gopher",
    "atari_hero",
    "atari_jamesbond",
    "atari_kangaroo",
    "atari_krull",
    "atari_kung_fu_master",
    "atari_ms_pacman",
    "atari_pong",
    "atari_private_eye",
    "atari_qbert",
    "atari_road_runner",
    "atari_seaquest",
    "atari_up_n_down",
)


@functools.cache
def installed_games() -> tuple[str, ...]:
    """Games whose ROM is installed, e.g. "ms_pacman"; () if there are none.

    The ROMs come in the envpool-assets wheel, which envpool requires; older ones lay in envpool itself.
    """
    for package in ("envpool_assets", "envpool"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            roms = sorted(pathlib.Path(folder, "atari", "roms").glob("*.bin"))
            if roms:
                return tuple(rom.stem for rom in roms)
    return ()


def envpool_id(game: str) -> str:
    """EnvPool's name: "ms_pacman" -> "MsPacman-v5"."""
    return "".join(word.capitalize() for word in game.split("_")) + "-v5"
