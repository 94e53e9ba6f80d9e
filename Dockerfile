# The image of launchers/gke.py and of a server, for TPUs (the default), NVIDIA GPUs or processors:
#   python launchers/gke.py --build=docker --image=us-docker.pkg.dev/my-project/images/tuna:1
#   docker build --build-arg=DEVICE=cpu --tag=tuna_jax .     # or cuda, or tpu
#   docker run --rm --publish=127.0.0.1:8000:8000 tuna_jax tuna-jax serve --model=emoji --host=0.0.0.0
# constraints.txt was written on this version of Python.
FROM python:3.11-slim
ARG DEVICE=tpu
WORKDIR /tuna_jax
# Requirements first: a layer that changes with them only. The package is not there yet, so they are read from files.
COPY requirements.txt constraints.txt ./
# CUDA's libraries come with the package: the host has the driver only.
RUN case "$DEVICE" in \
      cpu) jax='jax' ;; \
      cuda) jax='jax[cuda13]' ;; \
      tpu) jax='jax[tpu]' ;; \
      *) echo "DEVICE is '$DEVICE'; it must be cpu, cuda or tpu" >&2; exit 2 ;; \
    esac && pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt "$jax"
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt --editable '.[serve]'
