"""The pages in a real headless Chromium. A package, so that these tests share a browser, which ends with them."""
