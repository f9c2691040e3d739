# Source this with the names of requirement files: it creates .venv, installs them and this project
# (editable) once, and activates it. PYTHON selects the interpreter (3.10 or later).
if [ ! -x .venv/bin/python ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit("Python 3.10 or later is required; set PYTHON") if sys.version_info < (3, 10) else None'
    "${PYTHON:-python3}" -m venv .venv || { rm -rf .venv; exit 1; }
fi
for requirements in "$@"; do
    if ! cmp -s "$requirements" ".venv/installed-$requirements"; then
        echo "installing $requirements into .venv (torch takes minutes and 5 GB)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements"
        cp "$requirements" ".venv/installed-$requirements"
    fi
done
if ! cmp -s pyproject.toml .venv/installed-pyproject.toml; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
    cp pyproject.toml .venv/installed-pyproject.toml
fi
export PATH="$PWD/.venv/bin:$PATH"
