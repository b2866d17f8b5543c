#!/bin/sh
# Print a working interpreter of the version given ("3.13"): on the PATH, of pyenv, or from uv (which may download it).
set -eu
version=$1
for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
    if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
        echo "$candidate"
        exit 0
    fi
done
if command -v uv >/dev/null 2>&1; then
    uv python install --quiet "$version" && uv python find "$version" && exit 0
fi
echo "no Python $version: install it, or uv (https://docs.astral.sh/uv), and try again" >&2
exit 1
