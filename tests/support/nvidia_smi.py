"""What nvidia-smi prints, and a program in its place."""

from verl_gsd.run import gpus
from verl_gsd.run.gpus import TorchBuild

A100, H100 = "NVIDIA A100-SXM4-40GB", "NVIDIA H100 80GB HBM3"
WHEEL = TorchBuild("2.11.0+cu130", "13.0")
PYTHON = """<process_info>
				<gpu_instance_id>N/A</gpu_instance_id>
				<compute_instance_id>N/A</compute_instance_id>
				<pid>4242</pid>
				<type>C</type>
				<process_name>/opt/venv/bin/python</process_name>
				<used_memory>40960 MiB</used_memory>
			</process_info>"""


def card(number, name=H100, total="81559 MiB", free="81038 MiB", processes=""):
    """A GPU in the shape of ``nvidia-smi -q -x``: elements that we do not read stand between those that we do."""
    return f"""
	<gpu id="00000000:{number:02X}:00.0">
		<product_name>{name}</product_name>
		<product_brand>NVIDIA</product_brand>
		<mig_mode>
			<current_mig>Disabled</current_mig>
			<pending_mig>Disabled</pending_mig>
		</mig_mode>
		<mig_devices>
			None
		</mig_devices>
		<uuid>GPU-{number}f3e8a11-2d5c-4b0e-9a77-c1d4e5f60718</uuid>
		<minor_number>{number}</minor_number>
		<fb_memory_usage>
			<total>{total}</total>
			<reserved>520 MiB</reserved>
			<used>1 MiB</used>
			<free>{free}</free>
		</fb_memory_usage>
		<bar1_memory_usage>
			<total>131072 MiB</total>
			<used>1 MiB</used>
			<free>131071 MiB</free>
		</bar1_memory_usage>
		<processes>
			{processes}
		</processes>
	</gpu>"""


def report(*cards, driver="580.95.05", cuda="13.0", schema=12):
    return f"""<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v{schema}.dtd">
<nvidia_smi_log>
	<timestamp>Tue Feb  3 10:15:00 2026</timestamp>
	<driver_version>{driver}</driver_version>
	<cuda_version>{cuda}</cuda_version>
	<attached_gpus>{len(cards)}</attached_gpus>{"".join(cards)}

</nvidia_smi_log>
"""


EIGHT = gpus.parse(report(*map(card, range(8))))


def write_program(file, script):
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def stub_nvidia_smi(folder, monkeypatch, output, code=0):
    (folder / "output").write_text(output)
    write_program(folder / "nvidia-smi", f'echo "$*" >{folder}/words; cat {folder}/output; exit {code}')
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder / "words"
