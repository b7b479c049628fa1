# Verifies releases against their hashes and signatures before TensorFlow Serving loads them.
FROM python:3.13-slim-trixie
COPY serving/deploy/verify.lock /build/
RUN pip install --no-cache-dir --require-hashes --requirement /build/verify.lock
WORKDIR /app
COPY storage storage
COPY serving serving
RUN useradd --uid 1000 verifier
USER 1000
ENTRYPOINT ["python", "-m", "serving.releases", "verify", "--loaded", "--serving-dir"]
