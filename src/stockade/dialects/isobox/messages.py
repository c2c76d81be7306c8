"""The messages of `isobox.proto`, built when the module is imported. Needs the extra `grpc`.

Code that protoc generates is tied to the protobuf release that generated it; these descriptors go with any.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["MESSAGES", "METHODS", "SERVICE", "STATUS"]

PACKAGE = "isobox"
SERVICE = f"{PACKAGE}.CodeExecutionService"

STATUS = {
    "SUCCESS": 0,
    "COMPILATION_ERROR": 1,
    "RUNTIME_ERROR": 2,
    "TIMEOUT": 3,
    "MEMORY_LIMIT_EXCEEDED": 4,
    "UNSUPPORTED_LANGUAGE": 5,
    "INTERNAL_ERROR": 6,
}

METHODS = {
    "ExecuteCode": ("ExecuteCodeRequest", "ExecuteCodeResponse"),
    "HealthCheck": ("HealthCheckRequest", "HealthCheckResponse"),
    "GetSupportedLanguages": ("GetSupportedLanguagesRequest", "GetSupportedLanguagesResponse"),
}

FIELDS = {
    "ResourceLimits": (
        "uint32 cpu_time_limit_seconds",
        "uint32 wall_time_limit_seconds",
        "uint64 memory_limit_bytes",
        "uint64 stack_limit_bytes",
        "uint32 max_processes",
        "uint32 max_files",
        "bool enable_network",
    ),
    "ExecuteCodeRequest": (
        "string language",
        "string code",
        "ResourceLimits resource_limits",
        "string template",
    ),
    "ExecuteCodeResponse": (
        "string stdout",
        "string stderr",
        "int32 exit_code",
        "double time_taken",
        "uint64 memory_used",
        "ExecutionStatus status",
        "string error_message",
    ),
    "HealthCheckRequest": (),
    "HealthCheckResponse": ("string status", "string service", "string version", "uint64 uptime_seconds"),
    "LanguageInfo": (
        "string name",
        "string display_name",
        "string docker_image",
        "bool requires_compilation",
        "repeated string file_extensions",
    ),
    "GetSupportedLanguagesRequest": (),
    "GetSupportedLanguagesResponse": ("repeated LanguageInfo languages",),
}
"""Fields of each message in the order of their numbers, which begin with 1."""

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "double": _Field.TYPE_DOUBLE,
}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="stockade/isobox.proto", package=PACKAGE, syntax="proto3")
    status = file.enum_type.add(name="ExecutionStatus")
    for name, number in STATUS.items():
        status.value.add(name=name, number=number)
    for message, fields in FIELDS.items():
        descriptor = file.message_type.add(name=message)
        for number, field in enumerate(fields, start=1):
            repeated, kind, name = field.startswith("repeated "), *field.removeprefix("repeated ").split()
            label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            if kind in _SCALARS:
                descriptor.field.add(name=name, number=number, label=label, type=_SCALARS[kind])
            else:
                of = _Field.TYPE_ENUM if kind == "ExecutionStatus" else _Field.TYPE_MESSAGE
                descriptor.field.add(name=name, number=number, label=label, type=of, type_name=f".{PACKAGE}.{kind}")
    return file


def _classes() -> dict[str, Any]:
    # A pool of our own: the process's default one may hold another `isobox` package, of a client in the same process.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in FIELDS}


MESSAGES = _classes()
"""Message classes by name."""
