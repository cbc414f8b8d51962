// Products of matrices by the small kernels that oneDNN makes for AVX-512, called without its primitives.

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace {

constexpr int64_t ROWS = 64;                 // of a product, taken at once; half of it where threads would wait
constexpr int64_t DEPTH = 256;               // of a transposed factor, taken at once
constexpr int64_t WORTH_A_THREAD = 1 << 20;  // multiplications

void check(AOTITorchError error) {
  if (error != AOTI_TORCH_SUCCESS) throw std::runtime_error("a tensor could not be read or made");
}

// A float32 matrix where it lies in memory, by rows or by columns.
struct Matrix {
  float* data;
  int64_t rows, columns, row, column;  // sizes, and the strides from one to the next

  explicit Matrix(AtenTensorHandle tensor) {
    void* start;
    int64_t *sizes, *strides;
    check(aoti_torch_get_data_ptr(tensor, &start));
    check(aoti_torch_get_sizes(tensor, &sizes));
    check(aoti_torch_get_strides(tensor, &strides));
    data = static_cast<float*>(start);
    rows = sizes[0], columns = sizes[1], row = strides[0], column = strides[1];
  }

  float* at(int64_t i, int64_t j) const { return data + i * row + j * column; }
};

// Some rows and columns of a matrix that lies by columns, copied so that they lie by rows.
void lay_by_rows(const Matrix& x, int64_t i, int64_t j, int64_t rows, int64_t columns, float* to) {
  at::vec::transpose_mxn<float>(x.at(i, j), x.column, to, columns, static_cast<int>(columns), static_cast<int>(rows));
}

// y = x w; y lies by rows.
void multiply(const Matrix& x, Matrix w, const Matrix& y) {
  if (w.column != 1) {
    thread_local std::vector<float> laid;  // of the largest so far
    laid.resize(std::max(laid.size(), static_cast<size_t>(w.rows * w.columns)));
    lay_by_rows(w, 0, 0, w.rows, w.columns, laid.data());
    w.data = laid.data(), w.row = w.columns;
  }
  const int64_t n = y.columns, depth = x.columns;
  const int64_t block = x.rows < ROWS * at::get_num_threads() ? ROWS / 2 : ROWS;
  const int64_t blocks = (x.rows + block - 1) / block, grain = 1 + WORTH_A_THREAD / (block * depth * n + 1);
  at::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * block; i < std::min(end * block, x.rows); i += block) {
      const int64_t rows = std::min(block, x.rows - i);
      if (x.column == 1) {
        at::native::cpublas::brgemm(rows, n, depth, x.row, w.row, n, false, x.at(i, 0), w.data, y.at(i, 0));
        continue;
      }
      alignas(64) float part[ROWS * DEPTH];
      for (int64_t j = 0; j < depth; j += DEPTH) {
        const int64_t few = std::min(DEPTH, depth - j);
        lay_by_rows(x, i, j, rows, few, part);
        at::native::cpublas::brgemm(rows, n, few, few, w.row, n, j > 0, part, w.data + j * w.row, y.at(i, 0));
      }
    }
  });
}

}  // namespace

extern "C" AOTITorchError aoti_torch_cpu_product(AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle* result) {
  AtenTensorHandle made = nullptr;
  try {
    const Matrix left(x), right(w);
    const int64_t sizes[] = {left.rows, right.columns}, strides[] = {right.columns, 1};
    check(aoti_torch_empty_strided(
        2, sizes, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, &made));
    multiply(left, right, Matrix(made));
    *result = made;
    return AOTI_TORCH_SUCCESS;
  } catch (...) {
    if (made != nullptr) aoti_torch_delete_tensor_object(made);
    return AOTI_TORCH_FAILURE;
  }
}
