// Products of matrices by the small kernels that oneDNN makes for AVX-512, called without its primitives.

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <iostream>
#include <stdexcept>

namespace {

constexpr int64_t ROWS = 64;                 // of a product, taken at once; half as many where threads would wait
constexpr int64_t COLUMNS = 256;             // of a product, taken at once
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
    if (row != 1 && column != 1) throw std::invalid_argument("expected a matrix that lies by rows or by columns");
  }

  float* at(int64_t i, int64_t j) const { return data + i * row + j * column; }
};

// The largest of a few sizes, at most `most`, that fits into a number: a kernel is made for each that is ever asked for.
int64_t piece(int64_t left, int64_t most) {
  while (most > left) most /= 2;
  return most;
}

// Some rows and columns of a matrix that lies by columns, copied so that they lie by rows, `ld` apart.
void lay_by_rows(const Matrix& x, int64_t i, int64_t j, int64_t rows, int64_t columns, float* to, int64_t ld) {
  at::vec::transpose_mxn<float>(x.at(i, j), x.column, to, ld, static_cast<int>(columns), static_cast<int>(rows));
}

// All of a matrix that lies by columns, copied so that it lies by rows.
void lay_by_rows(const Matrix& x, float* to) {
  if (x.row != 1) throw std::invalid_argument("expected a matrix by columns");
  at::parallel_for(0, x.columns, 1 + WORTH_A_THREAD / (8 * x.rows + 1), [&](int64_t begin, int64_t end) {
    lay_by_rows(x, 0, begin, x.rows, end - begin, to + begin, x.columns);
  });
}

// Rows i to i + rows of y = x w, in columns j to j + n; w lies by rows.
void multiply(const Matrix& x, const Matrix& w, const Matrix& y, int64_t i, int64_t rows, int64_t j, int64_t n) {
  if (x.column == 1) {
    at::native::cpublas::brgemm(rows, n, x.columns, x.row, w.row, y.row, false, x.at(i, 0), w.at(0, j), y.at(i, j));
    return;
  }
  alignas(64) float part[ROWS * DEPTH];
  for (int64_t k = 0, depth; k < x.columns; k += depth) {
    depth = piece(x.columns - k, DEPTH);
    lay_by_rows(x, i, k, rows, depth, part, depth);
    at::native::cpublas::brgemm(rows, n, depth, depth, w.row, y.row, k > 0, part, w.at(k, j), y.at(i, j));
  }
}

// y = x w; w and y lie by rows.
void multiply(const Matrix& x, const Matrix& w, const Matrix& y) {
  if (w.column != 1 || y.column != 1) throw std::invalid_argument("expected a second factor and a result by rows");
  const int64_t most = x.rows < ROWS * at::get_num_threads() ? ROWS / 2 : ROWS;
  const int64_t down = (x.rows + most - 1) / most, across = (y.columns + COLUMNS - 1) / COLUMNS;
  const int64_t work = most * x.columns * std::min(COLUMNS, y.columns);
  at::parallel_for(0, down * across, 1 + WORTH_A_THREAD / (work + 1), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block % down * most, last = std::min(first + most, x.rows), j = block / down * COLUMNS;
      for (int64_t i = first, rows; i < last; i += rows) {
        rows = piece(last - i, most);
        multiply(x, w, y, i, rows, j, std::min(COLUMNS, y.columns - j));
      }
    }
  });
}

}  // namespace

extern "C" AOTITorchError ndeflow_product(AtenTensorHandle result, AtenTensorHandle x, AtenTensorHandle w) {
  try {
    multiply(Matrix(x), Matrix(w), Matrix(result));
    return AOTI_TORCH_SUCCESS;
  } catch (const std::exception& error) {
    std::cerr << "a product of matrices failed: " << error.what() << std::endl;
    return AOTI_TORCH_FAILURE;
  }
}

extern "C" AOTITorchError ndeflow_lay(AtenTensorHandle result, AtenTensorHandle x) {
  try {
    lay_by_rows(Matrix(x), Matrix(result).data);
    return AOTI_TORCH_SUCCESS;
  } catch (const std::exception& error) {
    std::cerr << "a matrix could not be laid by rows: " << error.what() << std::endl;
    return AOTI_TORCH_FAILURE;
  }
}
