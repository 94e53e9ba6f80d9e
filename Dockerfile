# The image of launchers/gke.py, for hosts with TPUs:
#   python launchers/gke.py --build=docker --image=us-docker.pkg.dev/my-project/images/tuna:1
# constraints.txt was written on this version of Python.
FROM python:3.11-slim
WORKDIR /tuna_jax
# Requirements first: a layer that changes with them only. The package is not there yet, so they are read from files.
COPY requirements.txt constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt 'jax[tpu]'
COPY . .
RUN pip install --no-cache-dir --no-deps --editable .
