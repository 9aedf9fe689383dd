# The suite in a container, with the versions and hashes of the lock file: docs/usage.md. PyTorch's wheels bring CUDA;
# without a GPU they compute on the CPU. LAYER=dev adds the tests' and the linters' packages.
FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends g++ git make && rm -rf /var/lib/apt/lists/*
WORKDIR /remeasure
COPY . .
ARG LAYER=run
RUN python3 src/set_up.py ${LAYER}
ENV PATH=/remeasure/.venv/bin:$PATH
CMD ["make", "reproduce"]
