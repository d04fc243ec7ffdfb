# distvae in a container; docs/launching.md, "Containers".
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# Triton compiles kernels for GPUs with a C compiler.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# torch has a layer of its own: gigabytes that a change of distvae does not touch.
COPY constraints.txt /opt/distvae/
RUN pip install --no-cache-dir --constraint /opt/distvae/constraints.txt torch

COPY . /opt/distvae/
RUN DS_BUILD_OPS=0 pip install --no-cache-dir --constraint /opt/distvae/constraints.txt \
    "/opt/distvae[deepspeed,explore,probe,report,sweep]"

WORKDIR /work
ENTRYPOINT ["distvae"]
CMD ["--help"]
