"""Reads `cargo metadata` on stdin: the licences of all dependencies, and those that a fresh clone must not need."""

import json
import re
import sys

ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
}

# Each of these needs a tool or a library that is not Cargo and not a C compiler.
UNWANTED = {
    "aws-lc-sys": "needs cmake; use ring",
    "cmake": "needs cmake",
    "openssl-sys": "needs the headers of OpenSSL; use rustls with ring",
    "pkg-config": "needs pkg-config and a system library",
    "prost-wkt-build": "needs protoc",
    "protobuf-src": "builds protoc, for minutes",
}


def allowed(expression: str) -> bool:
    """Whether an SPDX expression can be met with allowed licences alone. AND binds closer than OR."""
    expression = expression.replace("/", " OR ")
    tokens = re.findall(r"[()]|[^\s()]+", expression)

    def either() -> bool:
        met = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            met = both() or met
        return met

    def both() -> bool:
        met = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            met = one() and met
        return met

    def one() -> bool:
        name = tokens.pop(0) if tokens else ""
        if name == "(":
            met = either()
            if tokens:
                tokens.pop(0)
            return met
        if tokens and tokens[0] == "WITH":
            tokens.pop(0)
            name = f"{name} WITH {tokens.pop(0) if tokens else ''}"
        return name in ALLOWED

    return either() and not tokens


def main() -> int:
    packages = json.load(sys.stdin)["packages"]
    faults = []
    for package in packages:
        name, licence = package["name"], package["license"]
        if not licence or not allowed(licence):
            faults.append(f"{name} {package['version']}: licence {licence!r} is not on the list in .ci/licences.py")
        if name in UNWANTED:
            faults.append(f"{name} {package['version']}: {UNWANTED[name]}")
    for fault in faults:
        print(fault)
    print(f"{len(packages)} packages, {len(faults)} faults")
    return 1 if faults else 0


sys.exit(main())
