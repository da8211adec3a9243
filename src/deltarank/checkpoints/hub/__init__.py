"""Models on the Hugging Face Hub: listed, downloaded into the cache, or streamed by byte ranges."""
