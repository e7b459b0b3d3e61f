"""Claims, as far as it counts who may mount them at once."""

CLAIM = "ClaimModes"  # a Ref of this kind is a claim of which its access modes are asked, which never change
