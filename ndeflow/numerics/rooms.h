// Where compiled programs keep what they compute with, and when they let go of Python.
//
// The compiler makes a tensor of every intermediate at each call, and of every part of one that it writes to: a fifth of
// a step of 32 rows.

#include <algorithm>
#include <optional>
#include <vector>

// A tensor that a program computes with and gives to nobody. A small one stays for the next call on the same thread.
class Room {
 public:
  static constexpr int64_t SMALL = 1 << 14;  // elements

  Room() = default;
  Room(const Room&) = delete;
  ~Room() { leave(); }

  Room& of(int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype, int32_t device, int32_t index) {
    if (handle_ != nullptr && std::equal(sizes, sizes + dims, sizes_.begin(), sizes_.end())) return *this;
    leave();
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes, strides, dtype, device, index, &handle_));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle_, &data_));
    sizes_.assign(sizes, sizes + dims);
    int64_t elements = 1;
    for (int64_t size : sizes_) elements *= size;
    small_ = elements <= SMALL;
    return *this;
  }

  operator AtenTensorHandle() const { return handle_; }
  void* data_ptr() const { return data_; }

  // It is not needed in this call any more: a large one is let go.
  void reset() {
    if (!small_) leave();
  }

 private:
  void leave() {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
    handle_ = nullptr;
  }

  AtenTensorHandle handle_ = nullptr;
  void* data_ = nullptr;
  bool small_ = false;
  std::vector<int64_t> sizes_;
};

// A part of a tensor that lives as long, for it is written to as that is; made a tensor where it is asked for as one.
class Slice {
 public:
  Slice(AtenTensorHandle whole, int64_t dims, const int64_t* sizes, const int64_t* strides, int64_t offset, int64_t width)
      : whole_(whole), dims_(dims), sizes_(sizes), strides_(strides), offset_(offset) {
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(whole, &data_));
    data_ = static_cast<char*>(data_) + offset * width;
  }

  operator AtenTensorHandle() {
    if (tensor_.get() == nullptr) tensor_ = reinterpret_tensor_wrapper(whole_, dims_, sizes_, strides_, offset_);
    return tensor_.get();
  }

  void* data_ptr() const { return data_; }
  void reset() {}

 private:
  AtenTensorHandle whole_;
  int64_t dims_;
  const int64_t *sizes_, *strides_;
  int64_t offset_;  // in elements, of `width` bytes each, from where the whole begins
  void* data_;
  RAIIAtenTensorHandle tensor_;
};

// Whether a call takes longer than it takes threads to hand Python to each other, by how much it reads.
inline bool take_long(const std::vector<RAIIAtenTensorHandle>& inputs) {
  int64_t elements = 0;
  for (const auto& input : inputs) {
    int64_t size;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(input.get(), &size));
    elements += size;
  }
  return elements > 1 << 16;
}

void inductor_entry_impl(AtenTensorHandle* inputs, AtenTensorHandle* outputs);

// By which a program is called without its Python.
extern "C" void ndeflow_entry(AtenTensorHandle* inputs, AtenTensorHandle* outputs) { inductor_entry_impl(inputs, outputs); }
