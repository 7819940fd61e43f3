#!/usr/bin/env bash
# Install the real ffcv for the interop tests, without touching the environment's own packages.
#
#   .ci/install_ffcv.sh [VENV]     makes VENV/ffcv (default .venv/ffcv), a folder for PYTHONPATH
#
# ffcv's extension names OpenCV and libturbojpeg, which only its image fields use. Stub headers let
# it build in seconds where a C++ compiler is present; else the real libraries come from apt.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=$venv/bin/python
target=$venv/ffcv
log=$venv/ffcv-install.log

works() {
  PYTHONPATH=$target timeout 300 "$python" -c \
    'import ffcv.writer, ffcv.loader, ffcv.fields, ffcv.libffcv' >>"$log" 2>&1
}

stubs() {
  local dir=$1
  mkdir -p "$dir/opencv2"
  for name in opencv4 libturbojpeg; do
    printf 'Name: %s\nDescription: stub\nVersion: 4\nCflags: -I%s\nLibs: -lm\n' "$name" "$dir" \
      >"$dir/$name.pc"
  done
  cat >"$dir/opencv2/opencv.hpp" <<'HEADER'
#pragma once
#include <cstdint>
#include <stdexcept>
namespace cv {
enum { CV_8UC3 = 16, INTER_AREA = 3 };
struct Size {};
struct Mat {
  Mat(int64_t, int64_t, int, void *) {}
  Mat colRange(int64_t, int64_t) const { return *this; }
  Mat rowRange(int64_t, int64_t) const { return *this; }
  Size size() const { return Size(); }
};
inline void resize(const Mat &, Mat &, Size, int, int, int) {
  throw std::runtime_error("this ffcv was built without OpenCV");
}
}  // namespace cv
using cv::CV_8UC3;
HEADER
  cat >"$dir/turbojpeg.h" <<'HEADER'
#pragma once
typedef void *tjhandle;
struct tjscalingfactor { int num, denom; };
struct tjregion { int x, y, w, h; };
struct tjtransform { tjregion r; int op, options; void *data; void *customFilter; };
enum { TJXOP_HFLIP = 1, TJXOPT_CROP = 4, TJFLAG_FASTDCT = 2048, TJFLAG_NOREALLOC = 1024, TJPF_RGB = 0 };
#define TJSCALED(size, factor) (((size) * (factor).num + (factor).denom - 1) / (factor).denom)
inline tjhandle tjInitTransform() { return 0; }
inline tjhandle tjInitDecompress() { return 0; }
inline int tjTransform(tjhandle, const unsigned char *, unsigned long, int, unsigned char **,
                       unsigned long *, tjtransform *, int) { return -1; }
inline int tjDecompress2(tjhandle, const unsigned char *, unsigned long, unsigned char *, int, int,
                         int, int, int) { return -1; }
inline void tjFree(unsigned char *) {}
HEADER
}

install() {
  "$python" -m pip install -q --no-deps --upgrade --target "$target" \
    ffcv==1.0.2 pytorch_pfn_extras opencv-python-headless assertpy psutil pillow >>"$log" 2>&1
}

: >"$log"
if works; then
  echo "the real ffcv is in $target"
  exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
stubs "$scratch"
if ! { PKG_CONFIG_PATH=$scratch install && works; }; then
  echo "building ffcv against stubs failed; trying the libraries of apt (about 690 MB)"
  {
    apt-get update && apt-get install -y --no-install-recommends \
      g++ pkg-config libopencv-dev libturbojpeg0-dev
  } >>"$log" 2>&1 || true
  rm -rf "$target"
  { install && works; } || { tail -n 20 "$log"; echo "ffcv could not be installed"; exit 1; }
fi
echo "the real ffcv is in $target"
