"""The functions behind `import imf_core`; the commands of `imf` call them too."""
