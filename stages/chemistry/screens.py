"""Structural screens for substances that code picks: nothing dangerous to ask about, nothing built like a controlled drug.

They err on the side of leaving a lawful substance out. Each line is a SMARTS pattern and what it stands for.
"""

from chemicals import Carcinogen
from rdkit import Chem

MOST_HALOGENS = 4  # chlorine, bromine and iodine atoms; more are mostly persistent pollutants or flame retardants


def _patterns(lines: str) -> list[Chem.Mol]:
    return [Chem.MolFromSmarts(line.split()[0]) for line in lines.strip().splitlines()]


_DANGEROUS = _patterns("""
    [OX2][NX3+](=O)[O-]                     nitrate ester
    [OX2][N]=O                              nitrite ester
    [NX3+](=O)[O-].[NX3+](=O)[O-]           two nitro groups
    [N][N+](=O)[O-]                         nitramine
    [Cl,Br]C[NX3+](=O)[O-]                  halonitroalkane
    [N]=[N+]=[N-]                           azide
    [N-]=[N+]=N                             azide
    [#6]=[N+]=[N-]                          diazo compound
    [N+]#N                                  diazonium salt
    [OX2][OX2]                              peroxide
    [O-][O-]                                peroxide salt
    [Cl,Br,I](=O)(=O)                       chlorate and its kin
    [Cl]O                                   hypochlorite
    [#7]-[Cl,Br,I]                          N-halogen compound
    [C-]#[O,N+]                             fulminate, isocyanide
    C#[C-]                                  acetylide
    [N;!a]-[N;!a]                           hydrazine
    N-N=O                                   nitrosamine
    [P]F                                    phosphorus fluoride, as in nerve agents
    [P]C#N                                  phosphorus cyanide, as in nerve agents
    [P]Cl                                   phosphorus chloride
    [P](=[O,S])([#6])[O,S,F,N]              phosphonate and its kin
    P(=S)                                   thiophosphate pesticide
    [P](=O)(O)(O)S                          thiophosphate pesticide
    [P](=O)(N)N                             phosphoramide pesticide
    [P;X3]                                  trivalent phosphorus
    [S,N]([CH2][CH2][Cl,Br])[CH2][CH2][Cl,Br]  mustard
    ClCOC                                   chloromethyl ether
    ClCSC                                   chloromethyl sulfide
    [Cl,Br]CCO[P,S,C]                       haloethyl ether or ester
    OCC[Cl,Br,I]                            haloethanol
    ClC(=O)Cl                               phosgene
    ClC(=O)O                                chloroformate
    [O,S]=C=N                               isocyanate
    [CH2]=C=O                               ketene
    [C-]#N                                  cyanide salt
    N#C[Cl,Br,I]                            cyanogen halide
    N#CC(C)(C)O                             cyanohydrin
    [#6]S(=O)(=O)F                          sulfonyl fluoride
    S(=O)(=O)O[CX4]                         sulfuric or sulfonic ester, alkylating
    C1CN1                                   aziridine
    C1CS1                                   thiirane
    O=C1CCO1                                beta-lactone
    S(F)(F)(F)F                             sulfur fluoride
    FC(F)=C                                 fluoroalkene
    [CH3]NC(=O)Oc                           carbamate pesticide
    [CX4]SC(=O)N([CX4])[CX4]                thiocarbamate herbicide
    c[NH]C(=O)N([CH3])[CH3,$(O[CH3])]       phenylurea herbicide
    [NH]c1nc([O,S,Cl])nc([NH])n1            triazine herbicide
    [#6]=C(C#N)C#N                          ylidene malononitrile, tear gas
    [CH2]=CC=O                              vinyl carbonyl
    [Cl,Br,I]CC=O                           alpha-halo carbonyl, tear gas
    FCC(=O)                                 fluoroacetate
    c[CX4;H2,H1][Cl,Br,I]                   benzylic halide, tear gas
    [CX4;!R]([Br,I])[CX4;!R][Br,I]          vicinal dihalide
    [CX4]([F])[Cl,Br]                       ozone-depleting halocarbon
    ClC(Cl)(Cl)Cl                           carbon tetrachloride
    c1(Cl)c(Cl)c(Cl)cc(Cl)c1                polychlorinated arene
    ClC1=C(Cl)C2CCC1C2                      cyclodiene pesticide
    FC(F)C(F)(F)C(F)F                       perfluoroalkyl chain
    c1ccc2c(c1)ccc1c3ccccc3ccc21            polycyclic aromatic hydrocarbon
    c1ccc2c(c1)ccc1cc3ccccc3cc12            polycyclic aromatic hydrocarbon
    c1ccc2c(c1)ccc1c2ccc2ccccc12            polycyclic aromatic hydrocarbon
    c1cc2cccc3c2c(c1)ccc3                   polycyclic aromatic hydrocarbon
    c1cc2cccc3c2c(c1)cc3                    polycyclic aromatic hydrocarbon
    [Si]1OCCN(CCO1)                         silatrane
    NC(=S)Nc1cccc2ccccc12                   rodenticide thiourea
    O=C1c2ccccc2C(=O)C1C=O                  rodenticide indandione
""")
_CONTROLLED_KIN = _patterns("""
    [c][CX4,CX3;!R][CX4;!R][NX3;!$(N[C,S]=[O,S,N])]    phenethylamine, tryptamine, cathinone
    O=C1NC(=O)CC(=O)N1                      barbiturate
    [CX4](C(=O)OC)C(=O)OC                   malonate, barbiturate starting material
    O=C1CCC(=O)NC1                          glutarimide
    c1ccc2c(c1)~[#6,#7]~[#6,#7]~[#6,#7]~[#6,#7]~[#6,#7]2    benzodiazepine and its kin
    Nc1ccccc1C(=O)c1ccccc1                  aminobenzophenone, benzodiazepine starting material
    O=C(*)N(c)C1CCNCC1                      fentanyl type
    O=C1CCNCC1                              piperidone
    c1ccc(Cc2nc3ccccc3n2)cc1                nitazene
    c1ccccc1C1CCNCC1                        phenylpiperidine
    c1ccccc1C1(CCCCC1)N                     arylcyclohexylamine
    c1ccccc1N1CCNCC1                        phenylpiperazine
    c1ccccc1CN1CCNCC1                       benzylpiperazine
    [#6]1~[#6]~[#6]~[#6]2~[#6](~[#6]~1)~[#6]~[#6]~[#6]1~[#6]~2~[#6]~[#6]~[#6]2~[#6]~[#6]~[#6]~[#6]~2~1    steroid
    C(=O)c1cn(CCC)c2ccccc12                 indole cannabinoid
    NC(=O)OCC(C)(C)COC(N)=O                 meprobamate type
    c1ccccc1C1OC(N)=NC1                     aminorex type
    c1ccc2c(c1)OCO2                         benzodioxole
    c1ccccc1CC(=O)C                         phenylacetone type
    c1ccccc1CC#N                            phenylacetonitrile
    N#CC(c1ccccc1)c1ccccc1                  diphenylacetonitrile
    OC(c1ccccc1)(c1ccccc1)C(=O)O            benzilate
    OCCCC(=O)[O-,OH]                        GHB
    O=C1CCCO1                               GBL
    OCCCCO                                  butanediol
""")


def is_dangerous(molecule: Chem.Mol) -> bool:
    """Energetic, chemical-weapon-like, strongly alkylating, persistent or acutely toxic by its structure."""
    halogens = sum(atom.GetSymbol() in ("Cl", "Br", "I") for atom in molecule.GetAtoms())
    return halogens > MOST_HALOGENS or any(
        molecule.HasSubstructMatch(pattern) for pattern in _DANGEROUS
    )


def is_kin(molecule: Chem.Mol) -> bool:
    """Built like a family of controlled drugs or their starting materials."""
    return any(molecule.HasSubstructMatch(pattern) for pattern in _CONTROLLED_KIN)


def is_carcinogen(cas: str) -> bool:
    """Whether IARC (groups 1, 2A, 2B) or the US National Toxicology Program lists it."""
    return any(
        listing != "Unlisted" and "(3)" not in str(listing)
        for listing in Carcinogen(CASRN=cas).values()
    )
