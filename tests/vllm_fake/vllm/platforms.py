"""What the real package tells about the device that it was built for."""

import os


class Platform:
    device_type = os.environ.get("FAKE_VLLM_DEVICE", "cpu")

    def device_count(self) -> int:
        return int(os.environ.get("FAKE_VLLM_DEVICES", "1"))


current_platform = Platform()
