// Programs as functions of Python: what lies between a list of tensors and machine code.
//
// By the compiler's own door each argument and result becomes a capsule first, and there are three calls where there is
// one here: a fifth of a small program.

#include <ATen/core/Tensor.h>
#include <Python.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <stdexcept>
#include <vector>

// As torch/csrc/autograd/python_variable.h says, which takes ten times as long to read; `ndeflow_knows` tells whether.
struct THPVariable {
  PyObject_HEAD
  at::Tensor cdata;
};

extern PyObject* THPVariableClass;
extern PyObject* ParameterClass;
PyObject* THPVariable_Wrap(at::TensorBase&& tensor);

namespace {

// Takes what the handles in the first array stand for, and leaves handles in the second.
using Entry = void (*)(AtenTensorHandle*, AtenTensorHandle*);

struct Program {
  Entry entry;
  std::vector<Py_ssize_t> read;  // places of its arguments in the list that it is called with
  Py_ssize_t results;
};

const at::Tensor& tensor_of(PyObject* object) { return reinterpret_cast<THPVariable*>(object)->cdata; }

bool is_tensor(PyObject* object) {
  auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (type == THPVariableClass || type == ParameterClass) return true;
  return PyObject_IsInstance(object, THPVariableClass) == 1;
}

void take(const Program& program, PyObject* list, std::vector<std::unique_ptr<at::Tensor>>& given) {
  if (!PyList_Check(list)) throw std::invalid_argument("expected a list of tensors");
  for (Py_ssize_t place : program.read) {
    PyObject* object = place < PyList_GET_SIZE(list) ? PyList_GET_ITEM(list, place) : nullptr;
    if (object == nullptr || !is_tensor(object)) throw std::invalid_argument("expected tensors in all places read");
    given.push_back(std::make_unique<at::Tensor>(tensor_of(object)));
  }
}

void run(const Program& program, PyObject* list, std::vector<AtenTensorHandle>& made) {
  std::vector<std::unique_ptr<at::Tensor>> given;
  given.reserve(program.read.size());
  take(program, list, given);
  std::vector<AtenTensorHandle> handles;
  handles.reserve(given.size());
  for (auto& tensor : given) handles.push_back(reinterpret_cast<AtenTensorHandle>(tensor.release()));
  program.entry(handles.data(), made.data());
}

// Of the results of a program; a tensor that is given twice has one handle.
std::vector<at::Tensor> tensors_of(const std::vector<AtenTensorHandle>& made) {
  std::vector<at::Tensor> tensors;
  tensors.reserve(made.size());
  for (auto handle : made) tensors.push_back(*reinterpret_cast<at::Tensor*>(handle));
  std::vector<AtenTensorHandle> handles(made);
  std::sort(handles.begin(), handles.end());
  handles.erase(std::unique(handles.begin(), handles.end()), handles.end());
  for (auto handle : handles) delete reinterpret_cast<at::Tensor*>(handle);
  return tensors;
}

PyObject* listed(std::vector<at::Tensor> tensors) {
  PyObject* list = PyList_New(static_cast<Py_ssize_t>(tensors.size()));
  for (size_t i = 0; list != nullptr && i < tensors.size(); ++i) {
    PyObject* tensor = THPVariable_Wrap(std::move(tensors[i]));
    PyList_SET_ITEM(list, static_cast<Py_ssize_t>(i), tensor);
    if (tensor == nullptr) Py_CLEAR(list);
  }
  return list;
}

PyObject* call(PyObject* self, PyObject* list) {
  const auto& program = *static_cast<Program*>(PyCapsule_GetPointer(self, nullptr));
  std::vector<AtenTensorHandle> made(program.results);
  try {
    run(program, list, made);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  return listed(tensors_of(made));
}

void forget(PyObject* capsule) { delete static_cast<Program*>(PyCapsule_GetPointer(capsule, nullptr)); }

PyMethodDef METHOD = {"program", call, METH_O, "(list of tensors) -> list of tensors"};

}  // namespace

// Whether a tensor lies in memory as this file takes it to; implementation: where torch says that its own is.
extern "C" int ndeflow_knows(PyObject* tensor, void* implementation) {
  return tensor_of(tensor).unsafeGetTensorImpl() == implementation;
}

// A program as a function; read: a list of places.
extern "C" PyObject* ndeflow_function(void* entry, PyObject* read, Py_ssize_t results) {
  auto program = std::make_unique<Program>(Program{reinterpret_cast<Entry>(entry), {}, results});
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(read); ++i) {
    program->read.push_back(PyLong_AsSsize_t(PyList_GET_ITEM(read, i)));
  }
  PyObject* capsule = PyCapsule_New(program.get(), nullptr, forget);
  if (capsule == nullptr) return nullptr;
  program.release();
  PyObject* function = PyCFunction_New(&METHOD, capsule);
  Py_DECREF(capsule);
  return function;
}
