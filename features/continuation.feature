Feature: A task goes on where its engine was lost

  Background:
    Given a pool "words" with 1 slot
    And the setting "restart.backoff_ms" is 1

  @ORCHD-ATT-1 @ORCHD-ATT-2 @ORCHD-STREAM-1 @ORCHD-STREAM-6
  Scenario Outline: The engine <fails> within a <kind> answer, and the text is that of an uncut run
    Given its engine <fails> after 5 tokens in generation 2
    And it may be silent for 400 ms
    When alice submits and streams "uncut":
      | prompt      | Once upon a time |
      | max_tokens  | 16               |
      | sampling    | <sampling>       |
      | determinism | <determinism>    |
    Then the stream "uncut" ends with end
    And the end event of "uncut" says:
      | continuations | 0   |
      | exact         | yes |
    When alice submits and streams "cut" with the seed of "uncut":
      | prompt      | Once upon a time |
      | max_tokens  | 16               |
      | sampling    | <sampling>       |
      | determinism | <determinism>    |
    Then the stream "cut" ends with end
    And the stream "cut" started once and counts 16 tokens without gaps
    And the streams "uncut" and "cut" have the same tokens
    And the end event of "cut" says:
      | tokens_out    | 16      |
      | finish_reason | length  |
      | continuations | 1       |
      | exact         | <exact> |
    And "cut" has the record:
      | state    | "done" |
      | attempts | 2      |
    When alice watches "cut" as "replay"
    Then the streams "cut" and "replay" are the same

    Examples:
      | fails   | kind           | sampling          | determinism | exact      |
      | crashes | greedy         | {"temperature":0} | best_effort | unverified |
      | stalls  | greedy         | {"temperature":0} | best_effort | unverified |
      | crashes | sampled strict | {}                | strict      | yes        |
      | stalls  | sampled strict | {}                | strict      | yes        |

  @ORCHD-ATT-1 @ORCHD-ATT-2
  Scenario: A sampled answer that is not strict goes on, and says that it is not the uncut one
    Given its engine crashes after 5 tokens in generation 1
    When alice submits and streams "cut":
      | prompt     | Once upon a time |
      | max_tokens | 16               |
    Then the stream "cut" ends with end
    And the stream "cut" started once and counts 16 tokens without gaps
    And the end event of "cut" says:
      | continuations | 1  |
      | exact         | no |

  @ORCHD-ATT-1
  Scenario: An attempt that got on does not count: more are lost than tasks.max_attempts
    Given its engine crashes after 4 tokens in every generation
    When alice submits and streams "cut":
      | prompt     | Once upon a time  |
      | max_tokens | 18                |
      | sampling   | {"temperature":0} |
    Then the stream "cut" ends with end
    And the stream "cut" started once and counts 18 tokens without gaps
    And the end event of "cut" says:
      | continuations | 4          |
      | exact         | unverified |

  @ORCHD-ATT-1 @ORCHD-ATT-3
  Scenario: A task that crashes its engine each time fails, and its neighbours end well
    Given a pool "shared" with 2 slots
    And its model takes 500 ms to load
    And its engine crashes after 0 tokens in generations 1, 3 and 5
    When alice submits and streams "poison" to pool "shared":
      | prompt     | Once upon a time |
      | max_tokens | 8                |
    And alice submits and streams "neighbour" to pool "shared":
      | prompt     | Once upon a time |
      | max_tokens | 8                |
    And alice submits and streams "next" to pool "shared":
      | prompt     | Once upon a time |
      | max_tokens | 8                |
    Then the stream "poison" ends with error WORKER_RESET
    And "poison" has the record:
      | state    | "failed" |
      | attempts | 3        |
    And the stream "neighbour" ends with end
    And the stream "neighbour" started once and counts 8 tokens without gaps
    And the stream "next" ends with end
    And the stream "next" started once and counts 8 tokens without gaps
