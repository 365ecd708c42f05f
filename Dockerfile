# docker build -t glyphlm . && docker run --rm -v "$PWD:/data" glyphlm quickstart
# --build-arg PIP_EXTRA_INDEX_URL=.. names the index of another build of torch, such as the small one for CPUs.
FROM python:3.12-slim
ARG PIP_EXTRA_INDEX_URL=
RUN apt-get update && apt-get install -y --no-install-recommends fonts-unifont && rm -rf /var/lib/apt/lists/*
COPY constraints.txt pyproject.toml README.md LICENSE /src/
COPY glyphlm /src/glyphlm
COPY recipes /src/recipes
RUN pip install --no-cache-dir -c /src/constraints.txt '/src[eval,hub,lora,report,serve]' \
    && rm -r /src && useradd --create-home user
USER user
WORKDIR /data
ENTRYPOINT ["glyphlm"]
CMD ["--help"]
