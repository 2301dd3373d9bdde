#!/bin/bash
# Installs tree-influence 0.1.7, which needs older libraries, in a virtual environment of its own: DIR/venv.
#
#     benchmarks/tree_peers_install.sh DIR
#
# Its source distribution has the C files that Cython made, without the Cython files that its setup asks
# for: the C files are compiled as they are.
set -e
DIR=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$DIR"
python3 -m venv venv
venv/bin/pip install -q setuptools==80.9.0 wheel numpy==1.23.5 scipy==1.11.4 pandas==2.0.3 scikit-learn==1.1.3 \
    lightgbm==3.3.5 xgboost==1.6.2 catboost==1.2.5 torch==2.13.0+cpu
# the build fails here, and leaves the source behind
mkdir -p tmp
TMPDIR=$DIR/tmp venv/bin/pip download --no-clean --no-deps --no-build-isolation --no-binary :all: -d sdist \
    tree-influence==0.1.7 >/dev/null 2>&1 || true
rm -rf source
mv tmp/pip-download-*/tree-influence_* source
rm -rf tmp sdist
cat > source/setup.py <<'SETUP'
import glob
import numpy
from setuptools import Extension, find_packages, setup

files = glob.glob("tree_influence/**/*.c", recursive=True)
modules = [Extension(f[:-2].replace("/", "."), [f], include_dirs=[numpy.get_include()]) for f in files]
setup(name="tree-influence", version="0.1.7", packages=find_packages(), ext_modules=modules)
SETUP
venv/bin/pip install -q --no-build-isolation --no-deps ./source
venv/bin/python -c "import tree_influence.explainers"
