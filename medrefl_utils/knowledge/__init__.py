"""Knowledge graphs: read one, find a text's entities in it, and the paths between question and answer (MedReason).

In: a table of edges (PrimeKG's columns or others) and questions. Out: a ``KnowledgeGraph`` (``read_graph``), mentions
of its nodes in a text (``link_entities``), paths between nodes (``shortest_paths``, ``choose_paths``) and their text
(``describe_path``). ``join_node_table`` makes one table of graphs whose nodes have a table of their own (Hetionet,
OptimusKG). ``find_question_paths`` does this for questions; ``write_chains`` and ``write_chains_by_rule`` write chains
of reasoning along the paths, ``SupportChecker`` holds their steps against the graph, and ``pass_rates`` asks a model
with and without them. ``write_clinic_graph`` writes the clinic's world as such a table, so that all of it can be held
against a known truth.
"""

import lazy_loader

# Names are imported on first use, so that importing this room loads no model and no plots.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "graph": ["COLUMNS", "NODE_TYPES", "KnowledgeGraph", "read_graph"],
        "clinic_graph": ["write_clinic_graph"],
        "node_tables": ["join_node_table"],
        "linking": ["Linker", "Mention", "link_entities"],
        "graph_source": ["CLINIC", "load_graph"],
        "question_paths": ["PATH_TARGETS", "QuestionPaths", "find_question_paths", "question_texts"],
        "path_choice": ["choose_paths_by_model", "read_choice"],
        "chains.text": ["CHAIN_FORMATS", "ChainText", "format_response", "read_chain"],
        "chains.lengths": ["leave_out_long_paths", "questions_that_fit"],
        "chains.rule": ["rule_chain"],
        "chains.support": ["SUPPORT", "SupportChecker"],
        "chains.filter": ["other_questions", "pass_rates"],
        "chains.table": [
            "WRITERS",
            "chain_figures",
            "chain_steps",
            "chain_table",
            "filter_chains",
            "marked_steps",
            "write_chains",
            "write_chains_by_rule",
        ],
        "chains.exports": ["export_chains", "write_chain_card"],
        "model_linking": ["NameEmbeddings", "link_by_model"],
        "paths": ["KnowledgePath", "choose_paths", "describe_path", "shortest_paths"],
    },
)
