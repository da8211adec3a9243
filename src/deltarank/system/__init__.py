"""What other rooms need of the operating system and of Python: paths, atomic writes, globs, memory, threads, imports.

Standard library only.
"""

from __future__ import annotations

from deltarank.system.atomic import (
    replace_folder,
    unfinished_copies,
    write_atomically,
    write_bytes_atomically,
    write_text_atomically,
)
from deltarank.system.command import current_command, recorded_command
from deltarank.system.defaults import Default
from deltarank.system.globs import compile_globs
from deltarank.system.memory import free_large_blocks_at_once, memory_limit
from deltarank.system.paths import expand_home, nearest_path, nearest_path_in_words, user_path
from deltarank.system.quiet_imports import import_silently, silence_logging
from deltarank.system.suggestions import did_you_mean, near_names
from deltarank.system.threads import limit_openmp_spinning
from deltarank.system.version import installed_versions, tool_version

__all__ = [
    "Default",
    "compile_globs",
    "current_command",
    "did_you_mean",
    "expand_home",
    "free_large_blocks_at_once",
    "import_silently",
    "installed_versions",
    "limit_openmp_spinning",
    "memory_limit",
    "near_names",
    "nearest_path",
    "nearest_path_in_words",
    "recorded_command",
    "replace_folder",
    "silence_logging",
    "tool_version",
    "unfinished_copies",
    "user_path",
    "write_atomically",
    "write_bytes_atomically",
    "write_text_atomically",
]
