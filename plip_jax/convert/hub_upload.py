"""A finished export -> a repository of the Hugging Face hub.

Owns the upload, and what is said when it fails: the export stays whole where it is, and one command pushes it later.
"""

import os
import re
import shlex
from pathlib import Path

from plip_jax.convert.hub import HUB_ID

TOKEN_VARIABLE = "HF_TOKEN"

# https://huggingface.co/docs/hub/repositories-licenses
LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    other
    """.split()  # noqa: SIM905 # eighty quoted ids would be eighty lines
)
# Weights, programs, configurations and vocabularies: of another export, they would be loaded with this one's.
_OF_A_MODEL = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|onnx_data|stablehlo|gguf|json|txt|gz)")


class UploadError(ValueError):
    """An export that is whole and was not pushed. The message says why, and how to push it later."""


def is_repo_id(text: str) -> bool:
    """Whether this is OWNER/NAME."""
    return HUB_ID.fullmatch(text) is not None


def read_token(repo_id: str) -> str:
    """The hub's token.

    Raises:
        UploadError: there is none.
    """
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise UploadError(f"{repo_id}: expected a token of the hub in {TOKEN_VARIABLE}, got none")
    return token


def upload(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload a folder's files, in one commit; the repository is made where there is none.

    Args:
        folder: the export.
        repo_id: OWNER/NAME.
        private: a repository that others see is refused, and a new one is hidden from them.

    Returns:
        The repository's address.

    Raises:
        UploadError: no token, no network, a repository that is another's, one that is public, or one that holds
            another model's files.
    """
    later = (
        f"The export is whole at {folder}; push it later with\n  hf upload {repo_id} {shlex.quote(str(folder))} ."
        f"{' --private' if private else ''}"
    )
    try:
        token = read_token(repo_id)
    except UploadError as error:
        raise UploadError(f"{error}. {later}") from None
    import huggingface_hub  # not at the top: half a second that an export without --push-to-hub does not need

    try:
        api = huggingface_hub.HfApi(token=token)
        address = str(api.create_repo(repo_id, private=private, exist_ok=True))
        # exist_ok leaves a repository that is already there as it is.
        is_public = private and not api.repo_info(repo_id).private
        ours = {path.name for path in folder.iterdir()}
        theirs = sorted(
            name for name in api.list_repo_files(repo_id) if name not in ours and _OF_A_MODEL.fullmatch(name)
        )
        if not is_public and not theirs:
            api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message="Upload an export of plip_jax")
    except Exception as error:  # network, authentication, another's repository: a dozen types of three libraries
        reason = str(error).replace(token, "***").strip().splitlines() or [""]
        raise UploadError(f"{repo_id}: not pushed ({type(error).__name__}: {reason[0]}). {later}") from error
    if is_public:
        raise UploadError(f"{repo_id}: expected a private repository, got a public one: nothing was pushed. {later}")
    if theirs:
        raise UploadError(
            f"{repo_id}: expected a new repository or one of the same format, got one with files of another model, "
            f"which this one would be mixed with: {', '.join(theirs[:8])}; nothing was pushed. Delete them there, or "
            f"choose another repository. {later}"
        )
    return address
