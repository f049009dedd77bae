"""The contract between the compiler and a backend, and how backends and profiles are found."""
