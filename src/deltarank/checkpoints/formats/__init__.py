"""File formats and quantised storage formats: headers parsed as untrusted input, and decoders to float32."""
