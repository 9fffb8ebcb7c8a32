"""Croissant 1.1 metadata of the dataset with its responsible-AI fields, for mlcroissant.

    import mlcroissant
    next(iter(mlcroissant.Dataset("data/librachemqa/croissant.json").records("train")))

`validate` writes croissant.json next to the files it describes. Version, date and the objects'
addresses exist only after a release: `make release` adds them in data/released/croissant.json,
which loads from a clone without DVC.

Source: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html
"""

from pathlib import Path

from stages.core.cache import file_digest
from stages.domain.description import CHEMISTRY, PRECURSOR, Domain
from stages.domain.splits import SPLITS

COLUMN_MEANINGS = {
    "triplet_id": "id of the row: seed, prompt, chosen, rejected",
    "seed_id": "the request it was made from",
    "substance_id": "the substance asked about",
    "split": "train, validation or test; no parent structure, scaffold or near-duplicate name is "
    "in two of them",
    "expected": "`comply` or `refuse`: what a good model does",
    "intent": "what is asked",
    "intent_kind": "`neutral`, `dual` or `harmful`",
    "representation": "`text`: the prompt holds the name; `smiles`: it holds the SMILES",
    "prompt": "the request",
    "chosen": "the better answer: a refusal where `expected` is refuse, else help",
    "rejected": "the worse answer; on refuse rows an opener that ends in `[details withheld]`, or "
    "a bare refusal",
    "prompt_id": "the prompt's rephrasing; equal ids are equal texts",
    "chosen_id": "the chosen answer's rephrasing; equal ids are equal texts",
    "rejected_id": "the rejected answer's rephrasing; equal ids are equal texts",
    "rejected_kind": "`over_refusal`, `wrong_fact`, `unsafe_compliance` or `bare_refusal`",
    "teacher": "the model or grammar that wrote the texts",
    "fact": "JSON {name, value, unit, tolerance, method, source} of the grounded answer, or null",
}
CITATION = """\
@article{zhang2025dual,
  title   = {The Dual-use Dilemma in LLMs: \
Do Empowering Ethical Capacities Make a Degraded Utility?},
  author  = {Zhang, Yiyi and Chen, Xingyu and Chen, Kexin and Du, Yuyang and Dang, Xilin and \
Heng, Pheng-Ann},
  journal = {arXiv preprint arXiv:2501.13952},
  year    = {2025}
}"""
_SPLIT_URLS = {
    "train": "cr:TrainingSplit",
    "validation": "cr:ValidationSplit",
    "test": "cr:TestSplit",
}
# fmt: off
_TERMS = (
    "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field",
    "fileProperty", "fileObject", "fileSet", "format", "includes", "isArray", "isLiveDataset",
    "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex",
    "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform",
)
# fmt: on
# The @context of the specification, with its vocabularies of responsible AI and provenance.
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{term: f"cr:{term}" for term in _TERMS},
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}


def intended(domain: Domain) -> tuple[str, ...]:
    """The uses the dataset is for, one sentence each; the card lists them too."""
    return (
        f"Training refusal decisions in {domain.brief.field}: SFT on chosen answers, preference "
        "optimisation on pairs.",
        f"Measuring safety, utility and over-refusal of models on {domain.card.about} held out by "
        f"{domain.card.separated}.",
        "Research on shortcuts (what gives a label away) and on policies for dual use.",
    )


def out_of_scope(domain: Domain) -> tuple[str, ...]:
    """The uses it is not for."""
    return (
        f"Advice on real {domain.card.about}, on law or medicine: facts carry their source and "
        "date; check them there.",
        "Decisions about people.",
        "Training a model to comply with what must be refused: the rejected answers have no detail "
        "that would help.",
    )


def gaps(domain: Domain) -> tuple[str, ...]:
    """What is known to be missing."""
    sentences = [
        "Statuses are public legal facts as of the date in each reference, mostly of one "
        "jurisdiction, and change.",
        "English only; single-turn; short texts. The offline teacher's texts come from a grammar.",
        "Few requests ask for a property: rates over all requests don't show how much a model "
        f"knows about {domain.brief.field}.",
        "Legal status alone, or intent alone, predicts the label better than chance; only both "
        "together determine it.",
    ]
    if PRECURSOR in domain.labels:
        sentences.append("Precursors are asked about only in neutral ways.")
    if domain.name == CHEMISTRY:  # the only domain with structures
        sentences.append(
            "Controlled substances have structures only where they are medicines or drugs."
        )
    return tuple(sentences)


def croissant(
    folder: Path, sources: list[tuple[str, str, str]], teachers: list[str], domain: Domain
) -> dict:
    """The metadata of `folder`, which has a Parquet file for each split.

    `sources` has (name, MD5, SHA-256) of each table that the dataset was made from; `teachers` are
    the models that wrote the texts.
    """
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [
            "http://mlcommons.org/croissant/1.1",
            "http://mlcommons.org/croissant/RAI/1.0",
        ],
        "name": domain.card.title,
        "description": f"Preference triplets (prompt, chosen, rejected) about {domain.card.about} "
        "that teach a model to refuse illegitimate requests and to stay useful for legitimate "
        "ones. The label depends on the substance and on what is asked; splits are separated by "
        f"{domain.card.separated}.",
        "license": "https://creativecommons.org/licenses/by/4.0/",
        "creator": {"@type": "sc:Organization", "name": "The Libra developers"},
        "citeAs": CITATION,
        "inLanguage": "en",
        "isLiveDataset": False,
        "keywords": [*domain.card.tags, "safety", "over-refusal", "preference data", "dual use"],
        "prov:wasDerivedFrom": [{"@id": name, "sha256": sha256} for name, _, sha256 in sources],
        **_responsible(teachers, domain),
        "distribution": [_file(folder, split) for split in SPLITS],
        "recordSet": [_split_records(), *map(_row_records, SPLITS)],
    }


def _responsible(teachers: list[str], domain: Domain) -> dict:
    """The responsible-AI fields."""
    matched_on = "name length and molar mass" if domain.name == CHEMISTRY else "name length"
    return {
        "rai:dataCollection": f"Names of {domain.card.about} and their legal status come from "
        "public law and open registers, entered by hand with instrument, schedule and date; facts "
        "come from open sources, each with its source and method.",
        "rai:dataCollectionType": [
            "Others: public legal texts and open registers",
            "Synthetic text",
        ],
        "rai:dataPreprocessingProtocol": [
            "Requests are drawn so that refuse and comply are 1 : 1 in validation and test, and in "
            "train unless another share is set (the card counts both); dual requests are "
            f"matched on {matched_on}.",
            f"Splits keep whole groups together: they are separated by {domain.card.separated}.",
        ],
        "rai:dataManipulationProtocol": "A gate in code reads every text and fails closed: nothing "
        "that helps with what must be refused passes.",
        "rai:dataAnnotationProtocol": [
            "The label follows by rule from legal status and intent; nobody labels a row by hand."
        ],
        "rai:annotationsPerItem": "1",
        "rai:machineAnnotationTools": teachers,
        "rai:dataUseCases": [
            *intended(domain),
            *(f"Out of scope: {text[0].lower()}{text[1:]}" for text in out_of_scope(domain)),
        ],
        "rai:dataBiases": [
            "Statuses follow the law of few jurisdictions, mostly one.",
            "The card says how well shortcuts predict the label: "
            f"{matched_on}, length and wording of the prompt.",
        ],
        "rai:dataLimitations": list(gaps(domain)),
        "rai:dataSocialImpact": "Meant to make models safer and less prone to refuse harmless "
        "questions. Rejected answers to illegitimate requests stop before any detail, so a model "
        "trained to prefer them learns to agree, not what to do.",
        "rai:personalSensitiveInformation": ["None: no text is by or about a person."],
        "rai:dataReleaseMaintenancePlan": "A version never changes; data/released/versions.csv "
        "lists them, and CHANGELOG.md says which rows each changed.",
    }


def _file(folder: Path, split: str) -> dict:
    path = folder / f"{split}.parquet"
    return {
        "@type": "cr:FileObject",
        "@id": path.name,
        "name": path.name,
        "description": f"Triplets of the {split} split.",
        "contentUrl": path.name,
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": "application/x-parquet",
        "sha256": file_digest(path),
    }


def _split_records() -> dict:
    """The record set that names the splits."""
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [
            {"@type": "cr:Field", "@id": "splits/name", "name": "name", "dataType": "sc:Text"},
            {"@type": "cr:Field", "@id": "splits/url", "name": "url", "dataType": "sc:URL"},
        ],
        "data": [{"splits/name": split, "splits/url": _SPLIT_URLS[split]} for split in SPLITS],
    }


def _row_records(split: str) -> dict:
    """The record set of one split: a field for each column."""
    fields = []
    for name, meaning in COLUMN_MEANINGS.items():
        field = {
            "@type": "cr:Field",
            "@id": f"{split}/{name}",
            "name": name,
            "description": meaning,
            "dataType": "sc:Text",
            "source": {
                "fileObject": {"@id": f"{split}.parquet"},
                "extract": {"column": name},
            },
        }
        if name == "split":
            field["references"] = {"field": {"@id": "splits/name"}}
        fields.append(field)
    return {
        "@type": "cr:RecordSet",
        "@id": split,
        "name": split,
        "key": {"@id": f"{split}/triplet_id"},
        "field": fields,
    }
