"""XMP packets that declare a picture's digital source type, by IPTC's vocabulary.

The property is ``Iptc4xmpExt:DigitalSourceType`` of IPTC's photo metadata standard, which image searches and editors
read.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Literal, TypeAlias

SourceType: TypeAlias = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]

VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"

GENERATED = frozenset(
    {
        "trainedAlgorithmicMedia",
        "compositeWithTrainedAlgorithmicMedia",
        "algorithmicMedia",
        "compositeSynthetic",
    }
)
"""Terms of the vocabulary for pictures that a program made, at least in part."""

_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/">
   <Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>
   <xmp:CreatorTool>sd2rt {version}</xmp:CreatorTool>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""

# As an element's content, an attribute's value or an rdf:resource; not parsed as XML, which may be hostile.
_SOURCE_TYPE = re.compile(
    r"""\bDigitalSourceType\b[^<>]{0,200}?["'>]\s*https?://cv\.iptc\.org/newscodes/digitalsourcetype/(\w{1,80})"""
)


def source_type_of(from_image: bool) -> SourceType:
    """Return the source type of a generated picture; one that started from an image is a composite."""
    return "compositeWithTrainedAlgorithmicMedia" if from_image else "trainedAlgorithmicMedia"


def xmp_packet(source_type: SourceType) -> str:
    """Return the packet of a picture."""
    return _PACKET.format(source_type=VOCABULARY + source_type, version=version("sd2rt"))


def read_source_type(xmp: str) -> str | None:
    """Return the term of the vocabulary that any program's packet has; None for none."""
    found = _SOURCE_TYPE.search(xmp)
    return None if found is None else found[1]
