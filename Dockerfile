# NOT BUILT HERE: no container engine was at hand.
#   docker build -t moe-serve .
#   docker run -p 8000:8000 -v "$PWD/my-model:/model:ro" moe-serve               CPU
#   docker run --gpus all -p 8000:8000 -v "$PWD/my-model:/model:ro" moe-serve    NVIDIA GPU
#   docker run -p 8000:8000 -v "$PWD/my-export:/model:ro" --entrypoint python moe-serve \
#       scripts/serve.py --onnx /model --host 0.0.0.0                            CPU, ONNX
# `my-model` is a folder of `save_pretrained`, `my-export` one of scripts/export.py.

FROM python:3.11-slim
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1
WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY moe moe
COPY scripts/serve.py scripts/consume.py scripts/
# The wheels of torch for Linux bring CUDA with them; the host needs the driver alone.
RUN pip install -c constraints.txt '.[serve,events,onnx]' && useradd --uid 10001 --no-create-home serve
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --start-period=60s CMD ["python", "-c", \
    "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=3)"]
# An exec form, so that SIGTERM reaches Python and not a shell.
ENTRYPOINT ["python", "scripts/serve.py", "--ckpt", "/model", "--host", "0.0.0.0"]
